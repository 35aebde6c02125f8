"""Runs a notebook with this Python, in the folder it is started in: python run_notebook.py NOTEBOOK RESULT.

A program of its own, because a notebook's client leaves sockets behind that the next test would stumble over.
"""

import sys

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

SECONDS_A_CELL = 300


def main(source: str, result: str) -> None:
    book = nbformat.read(source, as_version=4)
    this_python = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    NotebookClient(book, km=this_python, timeout=SECONDS_A_CELL).execute()
    nbformat.write(book, result)


if __name__ == "__main__":
    main(*sys.argv[1:])
