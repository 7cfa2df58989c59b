#!/usr/bin/env bash
# What this program does on the machine's GPUs, as gpu.json and gpu.md.
#
#   run.sh [PART...] [--device wgpu:0 | --cuda] [--out DIR] [--minutes 8] [--tiny]
#
# Parts: devices, products (their rate, and the suites of what a vendor's library multiplies), steps (bf16), cpu (one
# step beside the CPU), peer (also its rate of products), tf32 (steps beside those in f32), profile, sanitizer
# (compute-sanitizer on small shapes), suites, untuned (steps in bf16 with kernels chosen by rule), f32 (steps and
# profile); without any, all of them in this order, so that what matters most is there when the time is up. Products
# take a quarter of the time at most, and steps half of the rest. --tiny takes shapes that a software driver can run,
# and leaves out what only cards have; --cuda measures the best card through CUDA and, with a driver, through Vulkan,
# side by side. Needs what build.sh has put into a folder, no network and no compiler; Python with torch, transformers
# and peft for the peer alone, which is skipped where they are missing. SPARTA_CUDA_GRAPHS=0 and SPARTA_CUDA_TUNE=1
# (docs/cuda.md) compare what they change: `run.sh --cuda steps`.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ -x "$here/gpu" ] || { echo "$here/gpu is not there: run.sh belongs into the folder that build.sh makes" >&2; exit 1; }

# The NVIDIA driver of a container may be mounted where the Vulkan loader does not look.
mounted=/usr/local/nvidia/share/vulkan/icd.d/nvidia_icd.json
if [ -z "${VK_DRIVER_FILES:-}" ] && [ -f "$mounted" ]; then
    export VK_DRIVER_FILES=$mounted
fi
# The Vulkan loader skips a driver that lacks libraries, without a message. Without ldconfig or ldd nothing is checked.
driver=$(ldconfig -p 2>/dev/null | awk '/libGLX_nvidia\.so\.0/ && !n++ {print $NF}') || true
missing=$([ -z "$driver" ] || ldd "$driver" 2>/dev/null | awk '/not found/ {printf " %s", $1}') || true
[ -z "$missing" ] || echo "NVIDIA's Vulkan driver cannot be loaded: it needs$missing" >&2
exec "$here/gpu" --programs "$here" "$@"
