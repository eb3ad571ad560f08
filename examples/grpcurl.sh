#!/usr/bin/env bash
# Classify one image with grpcurl: the raw KServe V2 call. Triton has no reflection, so the protocol comes from a file.
#
#     bash examples/grpcurl.sh HOST:PORT IMAGE
#
# Needs grpcurl, jq and base64. Each entry of the answer is PROBABILITY:INDEX:LABEL behind its length in 4 bytes.
set -euo pipefail

size=$(stat -c %s "$2")
base64 -w0 "$2" |
  jq -R --arg size "$size" '{
    model_name: "fruit_classifier",
    inputs: [{name: "IMAGE", datatype: "UINT8", shape: ["1", $size]}],
    outputs: [{name: "PROBABILITIES", parameters: {classification: {int64_param: "3"}}}],
    raw_input_contents: [.]
  }' |
  grpcurl -plaintext -import-path "$(dirname "$0")" -proto kserve_v2.proto -d @ "$1" \
    inference.GRPCInferenceService/ModelInfer |
  jq -r '.rawOutputContents[0]' | base64 -d | strings -n 4
