"""What the kit stands on: every installed dependency with its version and licence, and known vulnerabilities by pip-audit.

python tests/dependencies.py            the table of licences
python tests/dependencies.py --audit    pip-audit too (pip install -e ".[audit]"; it asks PyPI, or OSV with --osv)
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import subprocess
import sys

from packaging.requirements import Requirement


def dependencies(name: str = "ctxft", extras: tuple[str, ...] = ("",)) -> set[str]:
    """Return the names of all that a package needs, directly or not, as far as it is installed."""
    found: set[str] = set()
    waiting = [(name, extras)]
    while waiting:
        package, wanted = waiting.pop()
        for line in importlib.metadata.requires(package) or []:
            need = Requirement(line)
            taken = need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in wanted)
            known = re.sub(r"[-_.]+", "-", need.name).lower()
            if taken and known not in found and is_installed(need.name):
                found.add(known)
                waiting.append((need.name, ("", *need.extras)))
    return found


def is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def licence(name: str) -> str:
    """Return a package's licence as it states it: the SPDX expression, else the classifier, else the field's first line."""
    about = importlib.metadata.metadata(name)
    if expression := about.get("License-Expression"):
        return expression
    classified = [one.split(" :: ")[-1] for one in about.get_all("Classifier") or [] if one.startswith("License ::")]
    stated = (about.get("License") or "").strip().splitlines()
    return ", ".join(classified) or (stated[0][:60] if stated else "not stated")


def audit(names: set[str], service: str) -> int:
    """Run pip-audit over the versions that are installed; return its exit code."""
    lines = [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in sorted(names)]
    command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "-s", service, "-r", "/dev/stdin"]
    return subprocess.run(command, input="\n".join(lines), text=True, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--audit", action="store_true", help="look for known vulnerabilities")
    parser.add_argument("--osv", action="store_true", help="ask osv.dev instead of PyPI")
    options = parser.parse_args()
    names = dependencies()
    print("| package | version | licence |\n|---|---|---|")
    for name in sorted(names):
        print(f"| {name} | {importlib.metadata.version(name)} | {licence(name)} |")
    return audit(names, "osv" if options.osv else "pypi") if options.audit else 0


if __name__ == "__main__":
    sys.exit(main())
