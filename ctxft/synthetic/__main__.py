"""A worker of a study: ``python -m ctxft.synthetic '{"config": ..., "target": ..., "arms": ..., "seeds": ...}'``."""

import json
import sys

import torch

from ctxft.run.processes import die_with_parent
from ctxft.storage import InputError
from ctxft.synthetic.config import SyntheticConfig
from ctxft.synthetic.study import run_tasks

if __name__ == "__main__":
    die_with_parent()
    task = json.loads(sys.argv[1])
    config = SyntheticConfig(**task.pop("config"))
    torch.set_num_threads(config.threads)
    try:
        run_tasks(config, **task)
    except InputError as error:
        sys.exit(print(f"ctxft: {error}", file=sys.stderr) or 2)
    except KeyboardInterrupt:
        sys.exit(130)
