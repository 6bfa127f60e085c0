package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/r3labs/sse/v2"
	"gopkg.in/cenkalti/backoff.v1"
)

func r3labs(url string) {
	next, cursor, done := 0, []byte("-1"), false

	client := sse.NewClient(url, sse.ClientMaxBufferSize(16<<20))
	client.ReconnectStrategy = backoff.NewConstantBackOff(time.Second) // the default gives up after 15 minutes
	client.ResponseValidator = func(_ *sse.Client, r *http.Response) error {
		done = final(r.StatusCode)
		if r.StatusCode >= 500 {
			r.Body.Close()
			return errors.New(r.Status)
		}
		return nil
	}
	for !done { // it takes an end in the middle for the end of all
		client.SubscribeRaw(func(e *sse.Event) {
			event := string(e.Event)
			// It shows what is left of an event that was cut, and goes on from half an id: only the id that must come
			// next says that an event is whole.
			if event == "reset" {
				next = 0
				show("", event, string(e.Data))
			} else if bytes.HasSuffix(e.ID, fmt.Appendf(nil, "-%d", next)) {
				next, cursor, done = next+1, e.ID, event == "end"
				show(string(e.ID), event, string(e.Data))
			}
			client.LastEventID.Store(cursor)
		})
	}
}
