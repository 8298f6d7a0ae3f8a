"""Write the dashboards into the folder that is given."""

import json
import sys
from pathlib import Path

import floods
import framing
import heartbeats
import overview
import server
from grafana_foundation_sdk.cog.encoder import JSONEncoder

MODULES = [overview, floods, heartbeats, framing, server]


def main(folder: Path) -> None:
    for module in MODULES:
        board = module.BOARD
        text = json.dumps(board.build(), cls=JSONEncoder, indent=2, sort_keys=True)
        (folder / f"{board.uid}.json").write_text(text + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
