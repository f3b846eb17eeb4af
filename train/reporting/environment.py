"""What an attempt ran with, for whoever wants to repeat it."""

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from store.files import write_atomic, write_json
from store.run.code_version import read_code_version
from store.run.run_dir import Attempt
from train import process_group

PACKAGES = (
    "lockstep",
    "torch",
    "deepspeed",
    "diffusers",
    "transformers",
    "numpy",
    "pillow",
    "kornia-rs",
    "safetensors",
)
_DRIVER = Path("/proc/driver/nvidia/version")
# Variables that decide how a rank computes. Of all others only the names are told: their values may be secrets, and
# no pattern tells which (SLURM_JWT is a cluster's login token).
_RECORDED = """
    RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK MASTER_ADDR MASTER_PORT TORCHELASTIC_RESTART_COUNT
    LOCKSTEP_ATTEMPT LOCKSTEP_GPUS LOCKSTEP_INTERFACE LOCKSTEP_SRUN

    SLURM_JOB_ID SLURM_JOBID SLURM_ARRAY_JOB_ID SLURM_ARRAY_TASK_ID SLURM_RESTART_COUNT SLURM_STEP_ID SLURM_STEPID
    SLURM_CLUSTER_NAME SLURM_JOB_PARTITION SLURM_JOB_NODELIST SLURM_NODELIST SLURM_STEP_NODELIST SLURMD_NODENAME
    SLURM_NNODES SLURM_JOB_NUM_NODES SLURM_STEP_NUM_NODES SLURM_NODEID SLURM_NTASKS SLURM_NPROCS SLURM_STEP_NUM_TASKS
    SLURM_NTASKS_PER_NODE SLURM_TASKS_PER_NODE SLURM_PROCID SLURM_LOCALID SLURM_CPUS_PER_TASK SLURM_CPUS_ON_NODE
    SLURM_CPU_BIND SLURM_CPU_BIND_TYPE SLURM_CPU_BIND_LIST SLURM_MEM_PER_NODE SLURM_MEM_PER_CPU SLURM_DISTRIBUTION
    SLURM_GPUS SLURM_GPUS_ON_NODE SLURM_GPUS_PER_NODE SLURM_JOB_GPUS SLURM_STEP_GPUS SLURM_GPU_BIND

    OMP_NUM_THREADS OMP_PROC_BIND OMP_PLACES OMP_SCHEDULE OMP_DYNAMIC OMP_WAIT_POLICY GOMP_CPU_AFFINITY KMP_AFFINITY
    KMP_BLOCKTIME MKL_NUM_THREADS MKL_DYNAMIC MKL_CBWR MKL_ENABLE_INSTRUCTIONS MKL_DEBUG_CPU_TYPE MKL_THREADING_LAYER
    MKL_INTERFACE_LAYER MKL_SERVICE_FORCE_INTEL OPENBLAS_NUM_THREADS NUMEXPR_NUM_THREADS ATEN_CPU_CAPABILITY
    ONEDNN_MAX_CPU_ISA DNNL_MAX_CPU_ISA ONEDNN_DEFAULT_FPMATH_MODE MALLOC_ARENA_MAX LD_PRELOAD LD_LIBRARY_PATH

    CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER CUDA_LAUNCH_BLOCKING CUDA_MODULE_LOADING CUDA_DEVICE_MAX_CONNECTIONS
    CUDA_HOME CUDA_PATH CUDA_CACHE_PATH CUDA_MPS_PIPE_DIRECTORY CUBLAS_WORKSPACE_CONFIG CUBLASLT_WORKSPACE_SIZE
    NVIDIA_VISIBLE_DEVICES NVIDIA_TF32_OVERRIDE HIP_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES

    PYTORCH_ALLOC_CONF PYTORCH_CUDA_ALLOC_CONF PYTORCH_NO_CUDA_MEMORY_CACHING PYTORCH_NVML_BASED_CUDA_CHECK PYTORCH_JIT
    TORCH_ALLOW_TF32_CUBLAS_OVERRIDE TORCH_BLAS_PREFER_CUBLASLT TORCH_CUDNN_V8_API_DISABLED
    TORCH_CUDNN_USE_HEURISTIC_MODE_B TORCH_CUDA_ARCH_LIST TORCH_EXTENSIONS_DIR TORCH_HOME TORCH_CPP_LOG_LEVEL
    TORCH_DISTRIBUTED_DEBUG TORCH_SHOW_CPP_STACKTRACES TORCH_GLOO_LAZY_INIT TORCH_NCCL_ASYNC_ERROR_HANDLING
    TORCH_NCCL_BLOCKING_WAIT TORCH_NCCL_ENABLE_MONITORING TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC TORCH_NCCL_DUMP_ON_TIMEOUT
    TORCH_NCCL_TRACE_BUFFER_SIZE TORCH_FR_BUFFER_SIZE TORCH_FR_DUMP_TEMP_FILE TORCH_NCCL_DEBUG_INFO_TEMP_FILE
    TORCH_NCCL_DESYNC_DEBUG TORCH_NCCL_HIGH_PRIORITY TORCH_NCCL_AVOID_RECORD_STREAMS

    GLOO_SOCKET_IFNAME GLOO_DEVICE_TRANSPORT NCCL_ALGO NCCL_PROTO NCCL_BUFFSIZE NCCL_NTHREADS NCCL_LAUNCH_MODE
    NCCL_MIN_NCHANNELS NCCL_MAX_NCHANNELS NCCL_MIN_CTAS NCCL_MAX_CTAS NCCL_DEBUG NCCL_DEBUG_SUBSYS NCCL_TOPO_FILE
    NCCL_SOCKET_IFNAME NCCL_SOCKET_FAMILY NCCL_SOCKET_NTHREADS NCCL_NSOCKS_PERTHREAD NCCL_NET NCCL_NET_PLUGIN
    NCCL_TUNER_PLUGIN NCCL_NET_GDR_LEVEL NCCL_NET_GDR_READ NCCL_DMABUF_ENABLE NCCL_CROSS_NIC NCCL_PXN_DISABLE
    NCCL_P2P_DISABLE NCCL_P2P_LEVEL NCCL_SHM_DISABLE NCCL_NVB_DISABLE NCCL_NVLS_ENABLE NCCL_COLLNET_ENABLE
    NCCL_CUMEM_ENABLE NCCL_CUMEM_HOST_ENABLE NCCL_IGNORE_CPU_AFFINITY NCCL_GRAPH_MIXING_SUPPORT NCCL_IB_DISABLE
    NCCL_IB_HCA NCCL_IB_TIMEOUT NCCL_IB_RETRY_CNT NCCL_IB_GID_INDEX NCCL_IB_SL NCCL_IB_TC NCCL_IB_ADAPTIVE_ROUTING
    NCCL_IB_QPS_PER_CONNECTION NCCL_IB_SPLIT_DATA_ON_QPS NCCL_IB_PCI_RELAXED_ORDERING

    DS_ACCELERATOR DS_BUILD_OPS DS_SKIP_CUDA_CHECK DS_IGNORE_CUDA_DETECTION DS_PIN_MEMORY_BACKEND DEEPSPEED_TIMEOUT
    HF_HOME HF_HUB_CACHE HUGGINGFACE_HUB_CACHE HF_HUB_OFFLINE HF_HUB_DISABLE_PROGRESS_BARS HF_ENABLE_PARALLEL_LOADING
    TRANSFORMERS_OFFLINE TRANSFORMERS_VERBOSITY DIFFUSERS_VERBOSITY DIFFUSERS_ATTN_BACKEND DIFFUSERS_ATTN_CHECKS
    TOKENIZERS_PARALLELISM PYTHONPATH PYTHONSAFEPATH PYTHONHASHSEED PYTHONUNBUFFERED
"""


def record_environment(attempt: Attempt, world: process_group.World) -> None:
    """Write `environment.json`, and what was changed in the code since its commit beside it. For rank 0."""
    code = asdict(read_code_version())
    if diff := code.pop("diff"):
        write_atomic(attempt.code_diff_path, diff + "\n")
    record = {
        "code": code | {"changed": bool(diff)},
        "packages": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "host": platform.node(),
        "device": platform.processor() or platform.machine(),
        "world_size": world.size,
        "threads_per_rank": torch.get_num_threads(),
        "variables": select_variables(os.environ),
    }
    if world.device.type == "cuda":
        record |= describe_gpus(world)
    write_json(attempt.environment_path, record)


def describe_gpus(world: process_group.World) -> dict[str, object]:
    """What decides how the GPUs compute. Every rank's GPU is named, as a broken one spoils the run of all."""
    nccl = torch.cuda.nccl.version() if torch.version.cuda else None
    return {
        "device": torch.cuda.get_device_name(world.device),
        "compute_capability": ".".join(map(str, torch.cuda.get_device_capability(world.device))),
        "gpus": list(world.gpus),  # by rank
        "driver": read_driver_version(),
        "cuda": torch.version.cuda or torch.version.hip,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, nccl)) if nccl else None,
        "fp32_precision": {  # tf32 or ieee; none: as torch has it by default
            "matmul": torch.backends.cuda.matmul.fp32_precision,
            "convolution": torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        },
        "bf16_reduced_precision_reduction": torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        "fp16_reduced_precision_reduction": torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
    }


def read_driver_version() -> str | None:
    """Of NVIDIA's kernel module, as it tells it itself; None where there is none."""
    if not _DRIVER.is_file():
        return None
    found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", _DRIVER.read_text())
    return found[1] if found else None


def select_variables(environment: Mapping[str, str]) -> dict[str, str | None]:
    """Every variable's name, with its value where it decides how a rank computes and cannot be a secret."""
    recorded = frozenset(_RECORDED.split())

    def is_safe(name: str) -> bool:  # an address with an @ may hold a password
        return name in recorded and "@" not in environment[name]

    return {name: environment[name] if is_safe(name) else None for name in sorted(environment)}
