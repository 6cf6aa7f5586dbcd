from m4 import data as data
from m4 import errors as errors
from m4 import export as export
from m4 import moe as moe
from m4.api.fit import fit as fit
from m4.api.loaded import Model as Model
from m4.api.loaded import load as load

__version__: str
USE: str
