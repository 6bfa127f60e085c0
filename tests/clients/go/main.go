// The Go libraries for server-sent events: `clients <library> <url>` reads a generation to its end and prints what
// the library shows.
package main

import (
	"encoding/json"
	"log"
	"os"
)

var libraries = map[string]func(url string){
	"r3labs/sse":               r3labs,
	"tmaxmax/go-sse":           tmaxmax,
	"launchdarkly/eventsource": launchdarkly,
	"donovanhide/eventsource":  donovanhide,
}

func main() {
	if len(os.Args) != 3 || libraries[os.Args[1]] == nil {
		log.Fatal("usage: clients <library> <url>")
	}
	libraries[os.Args[1]](os.Args[2])
}

// show prints an event as a line of JSON.
func show(id, event, data string) {
	if err := json.NewEncoder(os.Stdout).Encode([]string{id, event, data}); err != nil {
		log.Fatal(err)
	}
}

// final tells whether the status is the last word: `end` was seen before, or there is nothing to be read.
func final(status int) bool {
	return status == 204 || status/100 == 4
}
