from m4.moe.layer import MoE as MoE
from m4.moe.options import MoEOptions as MoEOptions
