"""A worker of a synthetic study: ``python -m ctxft.synthetic '{"config": ..., "target": ..., "arms": ..., "seeds": ...}'``."""

import json
import sys

from ctxft.run.processes import die_with_parent
from ctxft.synthetic.config import SyntheticConfig
from ctxft.synthetic.study import run_study_tasks

if __name__ == "__main__":
    die_with_parent()
    task = json.loads(sys.argv[1])
    run_study_tasks(SyntheticConfig(**task.pop("config")), **task)
