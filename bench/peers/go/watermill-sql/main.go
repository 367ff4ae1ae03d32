// watermill-sql URL TOPIC EVENTS|init: a subscriber of Watermill on its own table
// in PostgreSQL, whose messages have the type in their metadata; with `init` it
// makes the tables only.
//
// Its fast settings: pgx as the driver; 10,000 messages a query (its default is
// 100), as each query sorts all that are left, and one position for them; the
// subscriber itself and no router.
package main

import (
	"context"
	"os"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"

	"moontide/peers/work"
)

const aQuery = 10_000 // messages

func subscriber(url string) *sql.Subscriber {
	pool, err := pgxpool.New(context.Background(), url)
	work.Need(err)
	s, err := sql.NewSubscriber(sql.BeginnerFromPgx(pool), sql.SubscriberConfig{
		ConsumerGroup:  "peers",
		PollInterval:   10 * time.Millisecond,
		SchemaAdapter:  sql.DefaultPostgreSQLSchema{SubscribeBatchSize: aQuery},
		OffsetsAdapter: sql.DefaultPostgreSQLOffsetsAdapter{},
	}, watermill.NopLogger{})
	work.Need(err)
	return s
}

// handle returns when the last message's context has ended: from then on its
// query's position is written, and Close waits for that.
func handle(messages <-chan *message.Message, events int64, run *work.Run) {
	var last *message.Message

	for handled := int64(0); handled < events; handled = run.Add(1) {
		var event work.Event

		last = <-messages
		run.Begin()
		event.Type = last.Metadata.Get("type")
		event.Decode(last.Payload, &event.Payload)
		last.Ack()
	}
	<-last.Context().Done()
}

func main() {
	if len(os.Args) == 4 && os.Args[3] == "init" {
		work.Need(subscriber(os.Args[1]).SubscribeInitialize(os.Args[2]))
		return
	}
	args, events := work.Args(3)
	s := subscriber(args[0])
	messages, err := s.Subscribe(context.Background(), args[1])
	work.Need(err)
	var run work.Run

	handle(messages, events, &run)
	work.Need(s.Close())
	run.Print()
}
