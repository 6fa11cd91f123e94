#!/usr/bin/env bash
# The main job on generated data: generate smears in the native layout, train, evaluate, predict. Minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python}"
folder="${DEMO:-demo}"
export NO_ALBUMENTATIONS_UPDATE=1 MPLBACKEND=Agg

"$python" -m mtl data synth malaria output="$folder/smears" patients=12 fields=3 width=1024 overwrite=true
rm -rf "$folder/run" "$folder/predictions"
"$python" train.py task=malaria_mttl experiment=demo data.root="$folder/smears" paths.run_dir="$folder/run"
"$python" evaluate.py checkpoint="$folder/run/checkpoints/best.ckpt" output="$folder/run/evaluation"
"$python" predict.py checkpoint="$folder/run/checkpoints/best.ckpt" source="$folder/smears/Point Set" output="$folder/predictions"
echo
echo "report:      $folder/run/report.html"
echo "predictions: $folder/predictions"
