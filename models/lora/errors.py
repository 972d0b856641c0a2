"""What can be wrong with a LoRA, as part of the tree in `config/errors.py`.

FluxError
└── LoraError                  code                 HTTP
    ├── NotSafetensors         bad_file             415   a pickle, an archive, a picture, text
    ├── BadLoraFile            bad_file             422   safetensors that breaks a rule of its format or of ours
    ├── ReadOnlyLora           forbidden            403   it ships with the project and cannot be changed
    └── LoraIncompatible       lora_incompatible    409   cannot be applied, or not to this model
"""

from __future__ import annotations

from config.errors import FluxError


class LoraError(FluxError):
    """Base of everything that is wrong with a LoRA."""

    code, status = "bad_file", 422


class NotSafetensors(LoraError):
    code, status = "bad_file", 415


class BadLoraFile(LoraError):
    code, status = "bad_file", 422


class ReadOnlyLora(LoraError):
    code, status = "forbidden", 403


class LoraIncompatible(LoraError):
    code, status = "lora_incompatible", 409
