"""An OpenAI-compatible inference server for one GGUF model on an OpenCL engine.

In a checkout the folders ``server``, ``engine`` and ``kernels`` lie beside this one, and links in
it lead there: mypy, setuptools and editors follow them. Python looks for modules where the links
lead, so that tracebacks and breakpoints name the checkout's files. Installed, all is in here.
"""

from pathlib import Path

__path__ = [str((Path(__path__[0]) / "server").resolve().parent)]
