package main

import (
	"context"
	"log"
	"net/http"
	"time"

	"github.com/tmaxmax/go-sse"
)

func tmaxmax(url string) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		log.Fatal(err)
	}

	client := sse.Client{
		Backoff: sse.Backoff{MaxInterval: 10 * time.Second},
		ResponseValidator: func(r *http.Response) error {
			if final(r.StatusCode) {
				cancel()
			}
			return sse.DefaultValidator(r)
		},
	}
	connection := client.NewConnection(request)
	connection.Buffer(nil, 16<<20) // of the largest event
	connection.SubscribeToAll(func(e sse.Event) {
		show(e.LastEventID, e.Type, e.Data)
		if e.Type == "end" {
			cancel()
		}
	})
	for connection.Connect(); ctx.Err() == nil; connection.Connect() { // it gives up at a 5xx
		time.Sleep(time.Second)
	}
}
