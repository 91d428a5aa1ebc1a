#!/usr/bin/env bash
# From recordings to the model that comes with speechkit, on one GPU (README.md says what for, RESULTS.md what came of it).
#
#   recipes/speechocean/train.sh CORPUS NOISE OUT [OPTION=VALUE ...]
#
# CORPUS holds train-l2 and dev-l2 in LibriSpeech's layout, NOISE recordings of noise. What lies in OUT already is not made again.
# The options are for all three trainings.
set -euo pipefail
if [ $# -lt 3 ] || [ ! -d "$1/train-l2" ] || [ ! -d "$1/dev-l2" ] || [ ! -d "$2" ]; then
    echo "usage: recipes/speechocean/train.sh CORPUS NOISE OUT [OPTION=VALUE ...], CORPUS with train-l2 and dev-l2" >&2
    exit 2
fi
corpus=$(realpath "$1") noise=$(realpath "$2") out=$3
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)} minutes=${MINUTES:-3060} easy_minutes=${EASY_MINUTES:-900}
common=(recipe=speechocean_conformer "job.tokenizer=$out/tokenizer" optim.optimizer.fused=true)

mkdir -p "$out"
[ -e "$out/texts.txt" ] || "$python" -m recipes.speechocean.texts "$out/texts.txt" "$corpus/train-l2" \
    --tokenizer "$out/tokenizer"
easy=$("$python" -m speechkit.data.mini "$out/speech" --minutes "$easy_minutes" | tail -n 1)
[ -e "$out/speech/train-synthetic" ] || "$python" -m speechkit.data.mini "$out/speech" --texts "$out/texts.txt" \
    --minutes "$minutes" --split train-synthetic

# 1. Sentences of two hundred words. On real speech alone, or on all of it at once, nothing is learned for thousands of steps.
[ -e "$out/easy/release" ] || "$python" -m speechkit.train "${common[@]}" out="$out/easy" \
    data.root="$easy" data.train=[train-mini] data.valid=[dev-mini] data.test=[] data.concatenate=1 \
    data.batch_seconds=80 data.valid_batch_seconds=400 data.transform.speeds=[0.9,1.0] \
    task.flat_start=300 task.spec_augment=null optim.optimizer.lr=1e-3 optim.scheduler.warmup=100 \
    trainer.max_steps="${EASY_STEPS:-700}" trainer.val_check_interval=350 "${@:4}"

train() { # NAME START TIMES OPTION...: the real speech so many times beside the synthetic
    local real
    real=$(printf "$corpus/train-l2,%.0s" $(seq "$3"))
    [ -e "$out/$1/release" ] || "$python" -m speechkit.train "${common[@]}" out="$out/$1" init="$2" \
        data.root="$corpus" data.train="[$real$out/speech/train-synthetic]" data.test=[] \
        reverb=rooms noise=recordings data.transform.noise.folder="$noise" "${@:4}"
}

# 2. All of it.   3. More of the real speech, from the middle of 2, where the loss on dev-l2 was lowest.
middle=${MIDDLE:-5000}
train all "$out/easy/release" 8 seed=2 \
    callbacks.last.every_n_train_steps="$middle" callbacks.last.save_top_k=-1 'callbacks.last.filename="at{step}"' \
    ${STEPS:+trainer.max_steps="$STEPS"} "${@:4}"
"$python" -m recipes.speechocean.average "$out/all/release" "$out/middle" "$out/all/checkpoints/atstep=$middle.ckpt"
train more "$out/middle" 16 optim.optimizer.lr=9e-4 optim.scheduler.warmup=100 seed=3 data.cache=false \
    trainer.max_steps="${MORE_STEPS:-4800}" trainer.val_check_interval=400 "${@:4}"

# 4. The mean of the five best checkpoints of both.
"$python" -m recipes.speechocean.average "$out/more/release" "$out/release" "$out"/{all,more}/checkpoints/step*.ckpt
