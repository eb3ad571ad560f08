// Classify one image from JavaScript: the raw KServe V2 call.
//
//     cd examples/javascript && npm install
//     node classify.js HOST:PORT IMAGE
const fs = require("node:fs");
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [url, file] = process.argv.slice(2);
const definition = loader.loadSync(path.join(__dirname, "..", "kserve_v2.proto"), { keepCase: true });
const { GRPCInferenceService } = grpc.loadPackageDefinition(definition).inference;
const client = new GRPCInferenceService(url, grpc.credentials.createInsecure());

const image = fs.readFileSync(file);
const request = {
  model_name: "fruit_classifier",
  inputs: [{ name: "IMAGE", datatype: "UINT8", shape: [1, image.length] }],
  outputs: [{ name: "PROBABILITIES", parameters: { classification: { int64_param: 3 } } }],
  raw_input_contents: [image],
};

client.ModelInfer(request, { deadline: Date.now() + 10_000 }, (error, response) => {
  client.close();
  if (error) {
    console.error(`${grpc.status[error.code]}: ${error.details}`);
    process.exitCode = 1;
    return;
  }
  // Each entry is PROBABILITY:INDEX:LABEL behind its length in 4 bytes.
  const tensor = response.raw_output_contents[0];
  for (let at = 0; at < tensor.length; ) {
    const length = tensor.readUInt32LE(at);
    console.log(tensor.toString("utf8", at + 4, at + 4 + length));
    at += 4 + length;
  }
});
