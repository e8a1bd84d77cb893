"""The lessons as a static site: pages that need no server, no network and no kernel, with widgets that still work."""

from moe_lab.site.build import build

__all__ = ["build"]
