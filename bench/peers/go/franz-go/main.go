// franz-go BROKERS TOPIC GROUP EVENTS: a member of a group that polls batches,
// decodes them by encoding/json and commits now and then.
//
// Its fast settings: a goroutine for each partition of a poll, as its examples
// have it, and commits of our own, not one per poll. Its fetches are left alone:
// 50 MiB at once and one in flight for each broker are made for throughput.
package main

import (
	"context"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"

	"moontide/peers/work"
)

const (
	pollRecords = 20_000
	commitEvery = 200_000 // events
)

func join(brokers, topic, group string) *kgo.Client {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(brokers),
		kgo.ConsumeTopics(topic),
		kgo.ConsumerGroup(group),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.DisableAutoCommit(),
	)
	work.Need(err)
	return client
}

func handle(records []*kgo.Record) {
	var event work.Event

	for _, record := range records {
		event = work.Event{}
		event.Decode(record.Value, &event)
	}
}

func handleAll(fetches kgo.Fetches) {
	var group sync.WaitGroup

	fetches.EachPartition(func(p kgo.FetchTopicPartition) {
		group.Go(func() { handle(p.Records) })
	})
	group.Wait()
}

func main() {
	args, events := work.Args(4)
	client := join(args[0], args[1], args[2])
	ctx := context.Background()
	var run work.Run
	var handled, committed int64

	for handled < events {
		fetches := client.PollRecords(ctx, pollRecords)
		work.Need(fetches.Err())
		run.Begin()
		handleAll(fetches)
		handled = run.Add(int64(fetches.NumRecords()))
		if handled-committed >= commitEvery || handled >= events {
			work.Need(client.CommitUncommittedOffsets(ctx))
			committed = handled
		}
	}
	run.Print()
	client.Close()
}
