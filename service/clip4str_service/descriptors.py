"""File descriptors: as many as the connections need that may come, or else fewer connections."""

from __future__ import annotations

import logging
import resource

from clip4str_service.settings import Settings

log = logging.getLogger(__name__)

_OWN = 256  # of a front end: libraries, pipes, files, and connections that are being turned away


def with_descriptors(settings: Settings) -> Settings:
    """Raises this process's limit, which its children inherit, as far as is needed and allowed.

    Returns the settings, with fewer connections where the limit allows no more: a process that has no descriptor left
    can turn nobody away.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * settings.max_connections + _OWN
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return settings
    soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == wanted:
        return settings
    fitting = max(1, (soft - _OWN) // 2)
    log.warning(
        "the limit of open files (ulimit -n) allows fewer connections than are set",
        extra={"limit": soft, "needed": wanted, "max_connections": fitting},
    )
    return settings.model_copy(update={"max_connections": fitting})
