"""Helm without its binary: helm.py lint|render CHART [VALUES...].

render prints a JSON object, template by path; lint prints findings and fails if there is one of
severity warning or error. VALUES are files, or NAME=JSON for a single value; later ones win.
"""
import json
import sys

import helm_python as helm


def merge(values, more):
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            merge(values[key], value)
        else:
            values[key] = value
    return values


def load(words):
    values = {}
    for word in words:
        name, equals, text = word.partition("=")
        if equals:
            more = json.loads(text)
            for part in reversed(name.split(".")):
                more = {part: more}
        else:
            with open(word) as file:
                more = helm.values_from_yaml(file.read())
        merge(values, more)
    return values


def main():
    command, chart, *words = sys.argv[1:]
    values = load(words)
    if command == "lint":
        report = helm.lint(chart, values, strict=True)
        print(json.dumps(report))
        return int(any(message["severity"] > 1 for message in report["messages"]))
    with helm.Chart.load(chart) as loaded:
        loaded.validate_schema(values)
        rendered = loaded.render(values, name="ws-guard", namespace="ws-guard")
    print(json.dumps({path.partition("/templates/")[2]: text for path, text in rendered.items()}))


try:
    sys.exit(main())
except helm.HelmError as error:
    sys.exit(f"helm: {error}")
