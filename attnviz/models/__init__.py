"""Text + request -> Capture. One backend a file; ``load`` picks it by what the model's folder holds."""

from attnviz.models.request import Model, Placement, Request

__all__ = ["Model", "Placement", "Request", "load"]


def load(
    name: str = "builtin",
    *,
    revision: str | None = None,
    placement: Placement = Placement(),  # noqa: B008 - frozen
    offline: bool = False,
    quiet: bool = True,
) -> Model:
    """Load a model: ``builtin``, a folder, an alias or a hub id; the local cache first, then a download.

    Raises ModelError if it cannot be had or is refused, UsageError if the device is not there.
    """
    from attnviz.lm import store
    from attnviz.models import names

    folder = names.locate(name, revision=revision, offline=offline, quiet=quiet)
    if store.is_ours(folder):
        from attnviz.models.builtin import Builtin

        return Builtin(name, folder, placement)
    from attnviz.models.huggingface import HuggingFace

    return HuggingFace(name, folder, placement)
