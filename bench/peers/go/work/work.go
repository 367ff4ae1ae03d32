// Package work is what the Go peers share: an event, its three fields, and the
// figures of a run.
package work

import (
	"encoding/json"
	"fmt"
	"log"
	"math"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

// Payload has the fields that are read; the decoder checks and skips the rest.
type Payload struct {
	Total    float64 `json:"total"`
	Currency string  `json:"currency"`
}

// Event is the envelope of an event in Kafka.
type Event struct {
	Type    string  `json:"eventType"`
	Payload Payload `json:"payload"`
}

// Decode reads `data` into `into` and fails without the three fields.
func (e *Event) Decode(data []byte, into any) {
	e.Payload.Total = math.NaN()
	Need(json.Unmarshal(data, into))
	if e.Type == "" || e.Payload.Currency == "" || math.IsNaN(e.Payload.Total) {
		log.Fatalf("a field is missing: %s", data)
	}
}

// Need ends the program on an error.
func Need(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// Args are the program's arguments, of which there must be `n`; the last one is
// the number of events.
func Args(n int) ([]string, int64) {
	if len(os.Args) != n+1 {
		log.Fatalf("%s: %d arguments wanted", os.Args[0], n)
	}
	events, err := strconv.ParseInt(os.Args[n], 10, 64)
	Need(err)
	return os.Args[1:], events
}

// Run measures from the first event to the last one.
type Run struct {
	handled atomic.Int64
	began   atomic.Bool
	start   time.Time
	cpu     time.Duration
}

// Begin is called when an event has come in; only the first call counts.
func (r *Run) Begin() {
	if !r.began.Load() && r.began.CompareAndSwap(false, true) {
		r.start, r.cpu = time.Now(), cpu(usage())
	}
}

// Add counts `n` events that have been handled; it returns how many were.
func (r *Run) Add(n int64) int64 {
	return r.handled.Add(n)
}

// Print is called when the position of the last event has been committed.
func (r *Run) Print() {
	now, u, n := time.Now(), usage(), r.handled.Load()
	fmt.Printf("{\"events\": %d, \"seconds\": %.6f, \"cpu_us\": %.4f, \"peak_mib\": %.1f}\n",
		n, now.Sub(r.start).Seconds(), (cpu(u)-r.cpu).Seconds()*1e6/float64(n),
		float64(u.Maxrss)/1024)
}

func usage() (u syscall.Rusage) {
	Need(syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return u
}

func cpu(u syscall.Rusage) time.Duration {
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
