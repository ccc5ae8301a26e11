"""Runs llama.cpp's own argument parser, loader and context in this process; told by words, answers with its log.

Run as a program of its own: ``python llama_host.py FOLDER_OF_LIBRARIES load|fit WORD...``. Everything that llama.cpp
logs goes to stderr; ``fit`` prints the bytes of every device on stdout. Exit code 3: the parser refused the words.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

_EXAMPLE_SERVER = 7
_ROOM = 1 << 16  # common_params has some 5 KiB
_REFUSED = 3


def main() -> int:
    """Parse, then load or measure."""
    folder, task, words = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    for name in ("libggml-base.so", "libggml.*.so", "libllama.*.so"):
        ctypes.CDLL(str(next(folder.glob(name))), mode=ctypes.RTLD_GLOBAL)
    ggml = ctypes.CDLL(str(next(folder.glob("libggml.*.so"))))
    ggml.ggml_backend_load_all_from_path(str(folder).encode())
    common = ctypes.CDLL(str(folder / "libllama-common.so"))
    common._Z11common_initv()
    params = ctypes.create_string_buffer(_ROOM)
    common._ZN13common_paramsC1Ev(params)
    argv = (ctypes.c_char_p * (len(words) + 2))(*(word.encode() for word in ("llama-server", *words)), None)
    parse = common._Z19common_params_parseiPPcR13common_params13llama_examplePFviS0_E
    parse.restype = ctypes.c_bool
    if not parse(len(words) + 1, argv, params, _EXAMPLE_SERVER, None):
        return _REFUSED
    if task == "load":
        result = ctypes.c_void_p()
        common._Z23common_init_from_paramsR13common_paramsb(ctypes.byref(result), params, False)
        return 0
    model, context = ctypes.create_string_buffer(_ROOM), ctypes.create_string_buffer(_ROOM)
    common._Z28common_model_params_to_llamaR13common_params(model, params)
    common._Z30common_context_params_to_llamaRK13common_params(context, params)
    path = words[words.index("-m") + 1]
    common._Z16common_fit_printPKcP18llama_model_paramsP20llama_context_params(path.encode(), model, context)
    return 0


if __name__ == "__main__":
    sys.exit(main())
