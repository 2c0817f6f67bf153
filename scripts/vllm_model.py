"""Converts a GGUF file of Gemma 3 to what vLLM loads: vllm_model.py GGUF DIRECTORY

vLLM reads safetensors and a tokenizer of transformers. The weights are dequantised to bfloat16. On the way from GGUF the
tokenizer loses its rule to begin each text with <bos>, without which this model answers babble: it is put back, and
looked at. The directory appears under its name only once it is whole. Run it with .venv-vllm/bin/python.
"""
import os
import pathlib
import sys
import tempfile

import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def tokenizer_of(folder, name):
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    return tokenizer


def convert(gguf, target):
    whole = GgufConfig(gguf_file=gguf.name, dequantize=True)  # else it stays packed, and cannot be saved
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=whole
    )
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config  # the saved weights are plain
    tokenizer = tokenizer_of(gguf.parent, gguf.name)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        first = AutoTokenizer.from_pretrained(partial)("a")["input_ids"][0]
        if first != tokenizer.bos_token_id:
            sys.exit("vllm_model.py: the saved tokenizer still begins without <bos>: this transformers is not known here")
        os.chmod(partial, 0o755)
        made = target.parent / f".made-{os.getpid()}"
        os.rename(partial, made)
        os.rename(made, target)
        os.mkdir(partial)  # for TemporaryDirectory to remove


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    gguf, target = (pathlib.Path(argument).resolve() for argument in sys.argv[1:])
    if target.is_dir():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    convert(gguf, target)
    print(target)


if __name__ == "__main__":
    main()
