// Classify one image from Go: the raw KServe V2 call.
//
//	cd examples/go
//	protoc -I .. --go_out=. --go-grpc_out=. kserve_v2.proto
//	go mod init fruitstand && go mod tidy
//	go run . HOST:PORT IMAGE
package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"log"
	"os"
	"time"

	"google.golang.org/grpc"

	"fruitstand/inference"
)

func main() {
	log.SetFlags(0)
	url, file := os.Args[1], os.Args[2]
	image, err := os.ReadFile(file)
	if err != nil {
		log.Fatal(err)
	}
	connection, err := grpc.Dial(url, grpc.WithInsecure())
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()

	topK := &inference.InferParameter{ParameterChoice: &inference.InferParameter_Int64Param{Int64Param: 3}}
	request := &inference.ModelInferRequest{
		ModelName: "fruit_classifier",
		Inputs: []*inference.ModelInferRequest_InferInputTensor{
			{Name: "IMAGE", Datatype: "UINT8", Shape: []int64{1, int64(len(image))}},
		},
		Outputs: []*inference.ModelInferRequest_InferRequestedOutputTensor{
			{Name: "PROBABILITIES", Parameters: map[string]*inference.InferParameter{"classification": topK}},
		},
		RawInputContents: [][]byte{image},
	}
	deadline, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	response, err := inference.NewGRPCInferenceServiceClient(connection).ModelInfer(deadline, request)
	if err != nil {
		log.Fatal(err)
	}

	// Each entry is PROBABILITY:INDEX:LABEL behind its length in 4 bytes.
	for tensor := response.RawOutputContents[0]; len(tensor) > 0; {
		length := binary.LittleEndian.Uint32(tensor)
		fmt.Println(string(tensor[4 : 4+length]))
		tensor = tensor[4+length:]
	}
}
