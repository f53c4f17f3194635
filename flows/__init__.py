"""Order, retries and limits, on Prefect; nothing else. The library below knows nothing of it."""
