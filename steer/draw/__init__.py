"""Pictures of results: contact sheets, family trees, heat maps, and a way to save them whole or not at all."""

from steer.draw.heat import overlay
from steer.draw.save import save_png
from steer.draw.sheet import contact_sheet
from steer.draw.tree import lineage_tree

__all__ = ["contact_sheet", "lineage_tree", "overlay", "save_png"]
