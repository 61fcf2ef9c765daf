"""A worker of a synthetic study: ``python -m ctxft.synthetic '{"config": ..., "target": ..., "arms": ..., "seeds": ...}'``."""

import json
import sys

from ctxft.run.processes import die_with_parent
from ctxft.storage import InputError, explain
from ctxft.synthetic.config import SyntheticConfig
from ctxft.synthetic.study import run_study_tasks

if __name__ == "__main__":
    die_with_parent()
    task = json.loads(sys.argv[1])
    try:
        run_study_tasks(SyntheticConfig(**task.pop("config")), **task)
    except InputError as error:
        print(f"ctxft: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if (sentence := explain(error)) is None:
            raise  # a defect of the kit: its traceback is needed
        print(f"ctxft: {sentence}", file=sys.stderr)
        sys.exit(1)
