"""Checks that need a parser or a schema: `check.py promql` with a JSON list of expressions on standard input, and
`check.py kubernetes FILE…`. Prints one line for each fault and exits 1 if there is one."""

import json
import sys

import kubernetes_validate
import promql_parser
import yaml

# The oldest and the newest version that the manifests are checked against.
KUBERNETES = ["1.29", "1.37"]


def promql():
    for expression in json.load(sys.stdin):
        try:
            promql_parser.parse(expression)
        except ValueError as error:
            yield f"{expression}: {error}"


def kubernetes(files):
    for file in files:
        with open(file, encoding="utf-8") as manifest:
            for document in yaml.safe_load_all(manifest):
                for version in KUBERNETES:
                    try:
                        kubernetes_validate.validate(document, version, strict=True)
                    except Exception as error:  # its own errors, and a kind that it does not know
                        path = ".".join(str(part) for part in getattr(error, "path", []))
                        yield f"{file}: Kubernetes {version}: {path}: {getattr(error, 'message', error)}"


faults = list(promql() if sys.argv[1] == "promql" else kubernetes(sys.argv[2:]))
print("\n".join(faults))
sys.exit(1 if faults else 0)
