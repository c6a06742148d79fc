package cri

import (
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// batchBytes is how much one message of a streamed list holds at the most, a single item of more aside. It is far below
// the 4 MiB that a gRPC client receives by default, and far above the cost of a message.
const batchBytes = 256 << 10

// sendBatches streams items, each once and in order; none is no message, the end of the stream tells it.
func sendBatches[Item proto.Message, Response any](out grpc.ServerStreamingServer[Response], items []Item, wrap func([]Item) *Response) error {
	for batch := range batches(items) {
		if err := out.Send(wrap(batch)); err != nil {
			return err
		}
	}
	return nil
}

// batches yields consecutive parts of items, none of them empty.
func batches[Item proto.Message](items []Item) func(yield func([]Item) bool) {
	return func(yield func([]Item) bool) {
		begin, bytes := 0, 0
		for i, item := range items {
			size := proto.Size(item)
			if i > begin && bytes+size > batchBytes {
				if !yield(slices.Clip(items[begin:i])) {
					return
				}
				begin, bytes = i, 0
			}
			bytes += size
		}
		if begin < len(items) {
			yield(items[begin:])
		}
	}
}
