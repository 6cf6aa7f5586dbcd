"""Prints what a layer's gradient by engine 'grouped' needs on an H100, compiled without one.

Arguments: experts, hidden units. Needs the CUDA plugin of jax, nvcc's wheel, triton, jax-triton.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

DESCRIPTION = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 9 patch: 0 }
"""
TOKENS, K, WIDTH = 131_072, 2, 2048


def main(num_experts: int, hidden: int) -> None:
    """Sizes in bytes, and whether the program has what it must not have."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    from m4.moe import experts
    from m4.moe.engine import dispatch
    from m4.types import Routing

    described = {"topology": "1x1x1", "target_config": DESCRIPTION}
    device = topologies.get_topology_desc(platform="cuda", topology_name="", **described).devices[0]
    target = dispatch.target_of(device)

    def array(shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))

    def loss(x_ND, weights_NK, params, experts_NK):
        nothing = jnp.zeros((TOKENS, 0))
        routing = Routing(experts_NK, weights_NK, nothing, nothing, jnp.ones(TOKENS, bool))
        functions = experts.Functions(jax.nn.relu)
        how = {"engine": "grouped", "target": target}
        y_NO, _ = dispatch.apply_experts(x_ND, routing, params, functions, **how)
        return jnp.mean(jnp.square(y_NO.astype(jnp.float32)))

    shapes = experts.shapes(num_experts, WIDTH, hidden).items()
    params = experts.ExpertParams(**{name: array(shape) for name, shape in shapes})
    given = array((TOKENS, WIDTH)), array((TOKENS, K), jnp.float32), params
    step = jax.jit(jax.grad(loss, (0, 1, 2)))
    compiled = step.lower(*given, array((TOKENS, K), jnp.int32)).compile()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    print(
        json.dumps(
            {
                "peak": held + memory.temp_size_in_bytes,
                "float32 stack": f"f32[{num_experts},{hidden},{WIDTH}]" in text,
                "turned weights": f"bf16[{num_experts},{WIDTH},{hidden}]" in text,
                "kernels": text.count("triton_kernel_call"),
            }
        )
    )


if __name__ == "__main__":
    (nvcc,) = importlib.util.find_spec("nvidia.cuda_nvcc").submodule_search_locations
    os.environ["PATH"] = f"{Path(nvcc) / 'bin'}:{os.environ['PATH']}"
    flags = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_cuda_data_dir={nvcc}"
    main(*map(int, sys.argv[1:]))
