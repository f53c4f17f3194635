"""Serve a folder until interrupted: `python -m hft2ane.localhub FOLDER [--port N]`."""

import argparse
import signal
from pathlib import Path

from hft2ane.localhub import LocalHub


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m hft2ane.localhub", description="Serve a Hub from a folder.")
    parser.add_argument("folder", type=Path, help="where its repos are kept; made if it is not there")
    parser.add_argument("--port", type=int, default=0, help="default: any free one")
    args = parser.parse_args()
    stop = (signal.SIGINT, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    with LocalHub(args.folder, port=args.port) as hub:
        print(f"export HF_ENDPOINT={hub.url} HF_TOKEN={hub.token}", flush=True)
        signal.sigwait(stop)


if __name__ == "__main__":
    main()
