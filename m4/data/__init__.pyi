from m4.data.opened import Dataset as Dataset
from m4.data.opened import open as open
