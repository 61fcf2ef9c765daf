"""A worker of a synthetic study, see ``ctxft.synthetic.study.work``."""

import sys

from ctxft.synthetic.study import work

if __name__ == "__main__":
    work(sys.argv[1])
