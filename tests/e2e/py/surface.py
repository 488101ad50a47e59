# SPDX-License-Identifier: Apache-2.0
"""The public methods of the installed package. Run by itself it prints them, for docs/compat.md."""

import inspect
import sys
from importlib.metadata import version as installed

import e2b

# What the package's own modules hold that its users do not call: generated clients, models, transports.
INTERNAL = ("e2b.api", "e2b.envd", "e2b.volume.client", "e2b.retry", "e2b.client")

# Bases of what people get; all they have is listed there.
BASES = {"SandboxBase", "SandboxApi", "AsyncSandboxApi", "SecretBase", "TemplateBase", "DockerfileParserInterface"}


def version():
    return installed("e2b")


def classes():
    """The classes of the package's modules, under their names; of two the asynchronous one as Async…"""
    assert e2b.__name__ in sys.modules
    found = {}
    for module_name, module in sorted(sys.modules.items()):
        if not module_name.startswith("e2b.") or module_name.startswith(INTERNAL):
            continue
        for name, value in vars(module).items():
            if inspect.isclass(value) and value.__module__ == module_name and not name.startswith("_"):
                label = ("Async" if "async" in module_name and not name.startswith("Async") else "") + name
                if label not in BASES:
                    found[label] = value
    return found


def surface():
    """{class: [method, …]}: public functions and class methods, inherited ones of the package included."""
    out = {}
    for label, value in classes().items():
        if issubclass(value, (Exception, dict)):
            continue
        methods = set()
        for name in dir(value):
            if name.startswith("_"):
                continue
            member = inspect.getattr_static(value, name)
            if isinstance(member, property) or not callable(getattr(value, name)):
                continue
            owner = next(base for base in value.__mro__ if name in vars(base))
            if owner.__module__.startswith("e2b."):
                methods.add(name)
        if methods:
            out[label] = sorted(methods)
    return out


if __name__ == "__main__":
    for label, methods in sorted(surface().items()):
        print(f"{label}: {' '.join(methods)}")
