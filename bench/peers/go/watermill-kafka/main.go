// watermill-kafka BROKERS TOPIC GROUP EVENTS: a subscriber of Watermill, whose
// messages are decoded by encoding/json and acknowledged one by one.
//
// Its fast settings: the subscriber itself and no router, which starts a
// goroutine for each message; a goroutine for each core; fetches of 4 MiB and a
// longer queue in Sarama; commits by Sarama's timer, as each Ack would else wait
// for the broker. Closing commits the rest.
package main

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	"moontide/peers/work"
)

func subscribe(brokers, topic, group string) (*kafka.Subscriber, <-chan *message.Message) {
	config := kafka.DefaultSaramaSubscriberConfig()
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	config.Consumer.Fetch.Default = 4 << 20
	config.ChannelBufferSize = 4096
	subscriber, err := kafka.NewSubscriber(kafka.SubscriberConfig{
		Brokers:               []string{brokers},
		Unmarshaler:           kafka.DefaultMarshaler{},
		OverwriteSaramaConfig: config,
		ConsumerGroup:         group,
	}, watermill.NopLogger{})
	work.Need(err)
	messages, err := subscriber.Subscribe(context.Background(), topic)
	work.Need(err)
	return subscriber, messages
}

// handle takes its share of the messages: one for each ticket. A message's
// context ends when its offset has been marked, which Close does not wait for:
// so the last one of each partition is waited for here.
func handle(messages <-chan *message.Message, tickets *atomic.Int64, run *work.Run) {
	last := map[int32]*message.Message{}

	for tickets.Add(-1) >= 0 {
		var event work.Event

		m := <-messages
		run.Begin()
		event.Decode(m.Payload, &event)
		partition, _ := kafka.MessagePartitionFromCtx(m.Context())
		last[partition] = m
		m.Ack()
		run.Add(1)
	}
	for _, m := range last {
		<-m.Context().Done()
	}
}

func main() {
	args, events := work.Args(4)
	subscriber, messages := subscribe(args[0], args[1], args[2])
	var group sync.WaitGroup
	var tickets atomic.Int64
	var run work.Run

	tickets.Store(events)
	for range runtime.NumCPU() {
		group.Go(func() { handle(messages, &tickets, &run) })
	}
	group.Wait()
	work.Need(subscriber.Close())
	run.Print()
}
