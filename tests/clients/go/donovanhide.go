package main

import (
	"errors"
	"log"
	"net/http"

	"github.com/donovanhide/eventsource"
)

func donovanhide(url string) {
	request, err := http.NewRequest(http.MethodGet, url, http.NoBody)
	if err != nil {
		log.Fatal(err)
	}

	// With a client of its own: it changes how its client follows redirects.
	stream, err := eventsource.SubscribeWith("", &http.Client{}, request)
	if err != nil {
		log.Fatal(err)
	}
	for {
		select {
		case e := <-stream.Events:
			show(e.Id(), e.Event(), e.Data())
			if e.Event() == "end" {
				return // without Close, which panics where the stream is about to send; it would ask for ever
			}
		case err := <-stream.Errors: // unread, they stop it
			var refusal eventsource.SubscriptionError
			if errors.As(err, &refusal) && final(refusal.Code) {
				return
			}
		}
	}
}
