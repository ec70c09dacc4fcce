"""Triton's interpreter without the work that it repeats or throws away: in half of its time.

- A launch replaces the functions of triton.language, and so does every call of a device function in
  it: here once a launch, for each module that its functions see.
- Integer operations are done again in 64 bits to assert that they do not overflow, and without the
  option ``debug``, as here, that assertion does nothing.
"""

from dataclasses import replace
from functools import cache
from inspect import ismodule


def install():
    """Safe to call again. Where Triton is absent or another it changes nothing."""
    try:
        from triton import language
        from triton.runtime import interpreter
    except ImportError:
        return
    patch_lang = getattr(interpreter, "_patch_lang", None)
    if not hasattr(interpreter, "_LangPatchScope") or hasattr(patch_lang, "replaced"):
        return
    launch = interpreter.GridExecutor.__call__
    patched = set()  # modules, in the launch that runs

    @cache
    def modules_of(function):
        seen = (value for value in function.__globals__.values() if ismodule(value))
        return {module.__name__ for module in seen if module in (language, language.core)}

    def patch_once(function):
        modules = modules_of(function)
        if modules and modules <= patched:
            return interpreter._LangPatchScope()
        patched.update(modules)
        return patch_lang(function)

    def launch_afresh(executor, *args, **kwargs):
        patched.clear()
        return launch(executor, *args, **kwargs)

    patch_once.replaced = patch_lang
    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch_once, launch_afresh
    builder = interpreter.interpreter_builder
    if not builder.options.debug:
        builder.options = replace(builder.options, sanitize_overflow=False)
