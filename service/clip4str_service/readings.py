"""The model library's value types, under the service's own roof: what is asked of a crop and what was read.

With this module and `worker.py` alone importing the library, the rest of the service cannot reach the model.
"""

from clip4str import Alternative, BranchReading, Character, ModelInfo, Reading, ReadOptions

__all__ = ["Alternative", "BranchReading", "Character", "ModelInfo", "ReadOptions", "Reading"]
