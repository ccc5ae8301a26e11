"""Runs llama.cpp's own argument parser, loader and context in this process; told by words, answers with its log.

Run as a program of its own: ``python llama_host.py FOLDER_OF_LIBRARIES load|generate|fit WORD...``, or ``... serve
LIBRARY HOST:PORT`` to play a remote GPU. What llama.cpp logs
goes to stderr. ``generate`` prints the tokens that follow a fixed prompt, greedily; ``fit`` prints MiB of weights,
cache and compute buffers of every device, without loading anything. Exit code 3: the parser refused the words.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

_EXAMPLE_SERVER = 7
_ROOM = 1 << 16  # common_params has some 5 KiB
_REFUSED, _FAILED = 3, 4
_PROMPT, _GENERATED = (1, 2, 3, 4), 8


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.c_void_p),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.c_void_p),
        ("n_seq_id", ctypes.c_void_p),
        ("seq_id", ctypes.c_void_p),
        ("logits", ctypes.c_void_p),
    )


def _generate(llama: ctypes.CDLL, context: ctypes.c_void_p, vocabulary: int) -> list[int]:
    llama.llama_batch_get_one.restype = _Batch
    llama.llama_decode.argtypes = (ctypes.c_void_p, _Batch)
    llama.llama_get_logits_ith.restype = ctypes.POINTER(ctypes.c_float)
    llama.llama_get_logits_ith.argtypes = (ctypes.c_void_p, ctypes.c_int32)
    found: list[int] = []
    tokens = list(_PROMPT)
    for _ in range(_GENERATED):
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        batch = llama.llama_batch_get_one(array, len(tokens))
        if llama.llama_decode(context, batch) != 0:
            sys.exit(_FAILED)
        logits = llama.llama_get_logits_ith(context, -1)
        tokens = [max(range(vocabulary), key=lambda index: logits[index])]
        found += tokens
    return found


def _serve(ggml: ctypes.CDLL, library: str, endpoint: str) -> int:
    """Offer the CPU as a device to other processes, for ever."""
    ggml.ggml_backend_dev_by_name.restype = ctypes.c_void_p
    devices = (ctypes.c_void_p * 1)(ggml.ggml_backend_dev_by_name(b"CPU"))
    ctypes.CDLL(library).ggml_backend_rpc_start_server(endpoint.encode(), None, ctypes.c_size_t(2), 1, devices)
    return _FAILED


def main() -> int:
    """Parse, then load, generate or measure."""
    folder, task, words = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    ctypes.CDLL(str(folder / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
    ggml = ctypes.CDLL(str(next(folder.glob("libggml.*.so"))), mode=ctypes.RTLD_GLOBAL)
    llama = ctypes.CDLL(str(next(folder.glob("libllama.*.so"))), mode=ctypes.RTLD_GLOBAL)
    ggml.ggml_backend_load_all_from_path(str(folder).encode())
    if task == "serve":
        return _serve(ggml, words[0], words[1])
    if "--rpc" in words:  # the library of the remote devices comes before the flags that name them
        ggml.ggml_backend_load(words.pop(0).encode())
    common = ctypes.CDLL(str(folder / "libllama-common.so"))
    common._Z11common_initv()
    params = ctypes.create_string_buffer(_ROOM)
    common._ZN13common_paramsC1Ev(params)
    argv = (ctypes.c_char_p * (len(words) + 2))(*(word.encode() for word in ("llama-server", *words)), None)
    parse = common._Z19common_params_parseiPPcR13common_params13llama_examplePFviS0_E
    parse.restype = ctypes.c_bool
    if not parse(len(words) + 1, argv, params, _EXAMPLE_SERVER, None):
        return _REFUSED
    if task == "fit":
        model, context = ctypes.create_string_buffer(_ROOM), ctypes.create_string_buffer(_ROOM)
        common._Z28common_model_params_to_llamaR13common_params(model, params)
        common._Z30common_context_params_to_llamaRK13common_params(context, params)
        path = words[words.index("-m") + 1].encode()
        common._Z16common_fit_printPKcP18llama_model_paramsP20llama_context_params(path, model, context)
        return 0
    result = ctypes.c_void_p()
    common._Z23common_init_from_paramsR13common_paramsb(ctypes.byref(result), params, False)
    get = common._ZN18common_init_result7contextEv
    get.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(get(result))
    if not handle:
        return _FAILED
    if task == "generate":
        llama.llama_get_model.restype = ctypes.c_void_p
        llama.llama_model_get_vocab.restype = ctypes.c_void_p
        vocab = llama.llama_model_get_vocab(ctypes.c_void_p(llama.llama_get_model(handle)))
        print(*_generate(llama, handle, llama.llama_vocab_n_tokens(ctypes.c_void_p(vocab))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
