#!/usr/bin/env bash
# What only a GPU can show, in one call of some minutes. Every part has a time limit, and prints its own.
#
#   benchmarks/on_gpu.sh MODEL DATA OUT [PART ...]
#
# MODEL  folder of SmolLM2-135M-Instruct, as `python -m demo` leaves it in the cache
# DATA   pool.jsonl and target.jsonl of the study larger-pool (`python -m experiments.robustness`), and lengths.json, see
#        benchmarks/gpu.py
# PART   solvers attempts rates peers others online quantized predict; all of them without
set -uo pipefail
model=$1 data=$2 out=$3
shift 3
mkdir -p "$out"
here=$(cd "$(dirname "$0")/.." && pwd)
cd "$here"
export PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore TOKENIZERS_PARALLELISM=false

solvers() { python3 -m benchmarks.solvers --device cuda --wide --forms; }

attempts() {
    python3 -m benchmarks.gpu_attempts --lengths "$data/lengths.json" --budget 16384
    python3 -m benchmarks.gpu_attempts --lengths "$data/lengths.json" --budget 32768 --rounds 2
}

rates() {
    python3 -m benchmarks.gpu --lengths "$data/lengths.json" --rows 512 --budgets 16384 32768 --cases "LoRA r=128" \
        --parts peaks extraction
}

work=(--parts beside --here --device cuda --dtype bfloat16 --size smollm2 --sides 16 --rows 512 --batch 128)

# rows of 128 tokens, and rows as long as a pool's (of the model only its tokenizer is used)
peers() {
    head -n 1500 "$data/pool.jsonl" > "$out/some.jsonl"
    python3 -m benchmarks run "${work[@]}" --peers bergson --model "$model" --pool "$out/some.jsonl"
}

# those that keep 50 GB each of a pool's rows
others() { python3 -m benchmarks run "${work[@]}" --peers dattri-llm logix "less' own way"; }

online() {
    python3 -m benchmarks.online --parts cost --device cuda --dtype bfloat16 --model "$model" --pool "$data/pool.jsonl" \
        --batch 128 --rates 0.5 0.7 --rounds 2 --learn lora
}

quantized() {
    python3 -m benchmarks.quantized --model "$model" --pool "$data/pool.jsonl" --target "$data/target.jsonl" \
        --out "$out/quantized" --rows 600 --device cuda
}

# `inspect` says how long; then the run itself
predict() {
    local settings=(--model "$model" --pool "$data/pool.jsonl" --target "$data/target.jsonl" --chat-template chatml
        --max-length 512 --dtype bfloat16 --on-bad-row skip --warmup.checkpoint-steps 8,16 --warmup.sample 256
        --warmup.epochs 2 --warmup.batch-size 32)
    python3 -m pursuit inspect "${settings[@]}"
    time python3 -m pursuit warmup "${settings[@]}" --run "$out/predicted"
    cp -r "$out/predicted" "$out/again"
    time python3 -m pursuit extract --run "$out/predicted"
    time python3 -m pursuit extract --run "$out/again" --devices cuda:0,cuda:0,cuda:0,cuda:0
    head -c 2000 "$out"/{predicted,again}/timings*.json
}

limits="solvers:150 attempts:300 rates:90 peers:150 others:150 online:60 quantized:90 predict:260"
for part in ${*:-solvers attempts rates peers others online quantized predict}; do
    limit=$(sed "s/.*$part:\([0-9]*\).*/\1/" <<< "$limits")
    begun=$SECONDS
    export -f "$part"
    export model data out
    timeout "$limit" bash -c "$(declare -p work); $part" > "$out/$part.txt" 2> "$out/$part.err" || echo "$part ended with $?"
    echo "== $part, $((SECONDS - begun)) s"
    grep -v '^$' "$out/$part.txt" | tail -n 60
    tail -n 30 "$out/$part.err" | tr '\r' '\n' | tail -n 20
done
