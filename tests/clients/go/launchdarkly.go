package main

import (
	"errors"
	"log"
	"net/http"
	"time"

	"github.com/launchdarkly/eventsource"
)

func launchdarkly(url string) {
	request, err := http.NewRequest(http.MethodGet, url, http.NoBody)
	if err != nil {
		log.Fatal(err)
	}

	stream, err := eventsource.SubscribeWithRequestAndOptions(request,
		eventsource.StreamOptionCanRetryFirstConnection(-1),
		eventsource.StreamOptionReadTimeout(time.Minute),
		eventsource.StreamOptionErrorHandler(func(err error) eventsource.StreamErrorHandlerResult {
			var refusal eventsource.SubscriptionError
			return eventsource.StreamErrorHandlerResult{CloseNow: errors.As(err, &refusal) && final(refusal.Code)}
		}),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer stream.Close() // it would ask for ever
	for e := range stream.Events {
		show(e.Id(), e.Event(), e.Data())
		if e.Event() == "end" {
			return
		}
	}
}
