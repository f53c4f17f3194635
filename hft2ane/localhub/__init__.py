"""A Hugging Face Hub on this machine, in a folder: for rehearsals, demos and tests, with the real client over HTTP.

    with LocalHub(Path("hub")) as hub:
        hub.add("org/model", Path("folder"))
        HfApi(endpoint=hub.url, token=hub.token).model_info("org/model")

transformers and `huggingface_hub.ModelCard` take no endpoint: they read HF_ENDPOINT, once, when they are imported.
"""

from hft2ane.localhub.server import Call, LocalHub
from hft2ane.localhub.store import Commit

__all__ = ["Call", "Commit", "LocalHub"]
