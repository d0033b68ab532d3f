#!/usr/bin/env bash
# Camelyon16 from end to end: download, cut patches, train, scan the test slides, the challenge's own scores.
#
#     examples/camelyon16.sh FOLDER
#
# Needs wsi-meta with its extra (pip install 'wsi-meta[train]'; '.[train]' in a clone) and the AWS command line (pip install
# awscli; no account), both on PATH, a GPU and room for several hundred GB. Every step that is done is passed over when the script is run again, and scanning and training go on where they were interrupted.
#
# ONLY='*_00?' takes only slides of such names, to try it with a few: in a folder of its own.
# HARD=1 scans the training slides too, cuts patches anew with what was mistaken for tumor, and trains again on those.
set -euo pipefail
shopt -s nullglob

folder=${1:?usage: examples/camelyon16.sh FOLDER}
only=${ONLY:-*}
bucket=s3://camelyon-dataset/CAMELYON16
for program in aws wsi-meta; do
  command -v "$program" >/dev/null || { echo "$program: not on PATH; see the head of $0" >&2; exit 1; }
done
mkdir -p "$folder"
cd "$folder"

todo() { # whether a step's output $1 is still to be made, or $2, where given, says that it is not finished; else tells so
  if [ ! -e "$1" ] || [ -e "${2:-}" ]; then return 0; fi
  echo "$1: is there, so its step is passed over; remove it to do that again" >&2
  return 1
}

# 1. Slides and outlines of their tumor
for part in images annotations; do
  aws s3 sync --no-sign-request --exclude '*' --include "$only.tif" --include "$only.xml" "$bucket/$part" "$part"
done

slides=(images/*.tif)
[ ${#slides[@]} -gt 0 ] || { echo "$bucket: no slide has a name like '$only'; give another ONLY" >&2; exit 1; }

# 2. Which slide has which outlines. Test slides are the challenge's; train and validation are dealt by wsi-meta.
{
  echo slide,annotations,split
  for slide in images/*.tif; do
    name=$(basename "$slide" .tif)
    outlines=annotations/$name.xml
    [ -e "$outlines" ] || outlines=
    case $name in
      tumor_*) [ -n "$outlines" ] || { echo "$slide: no outlines; it would pass for normal" >&2; exit 1; } ;;
      test_*) echo "$slide,$outlines,test"; continue ;;
    esac
    echo "$slide,$outlines,"
  done
} > manifest.csv

# 3. Patches and model. A training writes its model after every epoch; its checkpoint goes when it is finished.
if [ -e patches ] && [ -e sampled.csv ] && ! cmp -s manifest.csv sampled.csv; then
  echo "patches: cut from other slides than there are now; take another folder, or remove patches* model* report" >&2
  exit 1
fi
if todo patches; then
  cp manifest.csv sampled.csv
  wsi-meta sample sampled.csv --out patches
fi
if todo model.safetensors model.checkpoint; then
  wsi-meta train patches --init imagenet --epochs 4 --out model.safetensors --resume
fi
model=model.safetensors
if [ -n "${HARD:-}" ]; then
  wsi-meta scan images/normal_*.tif images/tumor_*.tif --model "$model" --out-dir scans_train
  if todo patches_hard; then wsi-meta sample sampled.csv --mine scans_train --out patches_hard; fi
  if todo model_hard.safetensors model_hard.checkpoint; then
    wsi-meta train patches_hard --init "$model" --epochs 2 --out model_hard.safetensors --resume
  fi
  model=model_hard.safetensors
fi
if todo report; then wsi-meta evaluate "$model" patches --split test --out report; fi

# 4. Heatmaps of the test slides, and their lesions; a peak as low as the threshold keeps unsure ones, which the curve ranks
wsi-meta scan images/test_*.tif --model "$model" --out-dir scans
mkdir -p detections truth
wsi-meta lesions scans --threshold 0.5 --peak 0.5 --detections 'detections/{name}.csv' --overwrite > /dev/null

# 5. Lesion score (FROC) and slide AUC; slides known to be wrong are left out, see wsi-meta froc --help
for outlines in annotations/test_*.xml; do cp "$outlines" truth/; done
wsi-meta froc detections truth --scores scans/summary.csv --out froc --overwrite
