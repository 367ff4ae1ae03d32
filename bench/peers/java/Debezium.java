import com.fasterxml.jackson.annotation.JsonIgnoreProperties;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.ObjectReader;
import com.sun.management.OperatingSystemMXBean;
import io.debezium.embedded.Connect;
import io.debezium.engine.DebeziumEngine;
import io.debezium.engine.DebeziumEngine.RecordCommitter;
import io.debezium.engine.RecordChangeEvent;
import io.debezium.engine.format.ChangeEventFormat;
import io.debezium.engine.spi.OffsetCommitPolicy;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import org.apache.kafka.connect.data.Struct;
import org.apache.kafka.connect.source.SourceRecord;

/**
 * Debezium PORT DATABASE SLOT OFFSETS EVENTS: Debezium's embedded engine on the
 * rows that are inserted into an outbox, whose bodies are decoded by Jackson into
 * a class; it commits its offsets after each batch.
 *
 * <p>Its fast settings: whole batches of up to 8,192 records (its default is
 * 2,048) out of a queue of four times that; records as they are (Connect), not
 * turned into JSON and back; pgoutput, and only the table and the inserts that
 * are wanted; its queue looked at each 10 ms.
 */
public final class Debezium
        implements DebeziumEngine.ChangeConsumer<RecordChangeEvent<SourceRecord>> {
    @JsonIgnoreProperties(ignoreUnknown = true)
    static final class Payload {
        public Double total;
        public String currency;
    }

    private static final ObjectReader PAYLOADS = new ObjectMapper().readerFor(Payload.class);
    private static final OperatingSystemMXBean PROCESS =
            (OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();

    private final CountDownLatch stop = new CountDownLatch(1);
    private final long events;
    private long handled, start, cpu; // ns

    private Debezium(long events) {
        this.events = events;
    }

    @Override
    public void handleBatch(
            List<RecordChangeEvent<SourceRecord>> batch,
            RecordCommitter<RecordChangeEvent<SourceRecord>> committer)
            throws InterruptedException {
        if (handled == 0) {
            start = System.nanoTime();
            cpu = PROCESS.getProcessCpuTime();
        }
        for (var event : batch) {
            handle((Struct) event.record().value());
            committer.markProcessed(event);
        }
        committer.markBatchFinished();
        handled += batch.size();
        if (handled >= events) {
            print();
            stop.countDown();
        }
    }

    private static void handle(Struct change) {
        try {
            Struct row = change.getStruct("after");
            Payload payload = PAYLOADS.readValue(row.getString("event_data"));

            if (row.getString("event_type") == null
                    || payload.total == null
                    || payload.currency == null) {
                throw new IllegalStateException("a field is missing");
            }
        } catch (IOException e) {
            throw new IllegalStateException(e);
        }
    }

    /** Called when the offsets have been committed, in its file and to the slot. */
    private void print() {
        double seconds = (System.nanoTime() - start) / 1e9;
        double cpuUs = (PROCESS.getProcessCpuTime() - cpu) / 1e3 / handled;

        System.out.printf(
                "{\"events\": %d, \"seconds\": %.6f, \"cpu_us\": %.4f, \"peak_mib\": %.1f}%n",
                handled, seconds, cpuUs, peakKib() / 1024.0);
    }

    private static long peakKib() {
        try (var lines = Files.lines(Path.of("/proc/self/status"))) {
            String peak = lines.filter(l -> l.startsWith("VmHWM:")).findFirst().orElseThrow();
            return Long.parseLong(peak.replaceAll("\\D", ""));
        } catch (IOException e) {
            throw new IllegalStateException(e);
        }
    }

    private static Properties settings(String port, String database, String slot, String offsets) {
        var settings = new Properties();

        settings.putAll(Map.ofEntries(
                Map.entry("name", slot),
                Map.entry("connector.class", "io.debezium.connector.postgresql.PostgresConnector"),
                Map.entry("offset.storage", "org.apache.kafka.connect.storage.FileOffsetBackingStore"),
                Map.entry("offset.storage.file.filename", offsets),
                Map.entry("topic.prefix", "peer"),
                Map.entry("database.hostname", "127.0.0.1"),
                Map.entry("database.port", port),
                Map.entry("database.user", "postgres"),
                Map.entry("database.password", ""),
                Map.entry("database.dbname", database),
                Map.entry("plugin.name", "pgoutput"),
                Map.entry("slot.name", slot),
                Map.entry("publication.name", "peers"),
                Map.entry("publication.autocreate.mode", "disabled"),
                Map.entry("table.include.list", "public.domain_events"),
                Map.entry("column.include.list", "public.domain_events.(id|event_type|event_data)"),
                Map.entry("snapshot.mode", "no_data"),
                Map.entry("tombstones.on.delete", "false"),
                Map.entry("max.batch.size", "8192"),
                Map.entry("max.queue.size", "32768"),
                Map.entry("poll.interval.ms", "10")));
        return settings;
    }

    public static void main(String[] args) throws Exception {
        var peer = new Debezium(Long.parseLong(args[4]));
        var engine = DebeziumEngine.create(ChangeEventFormat.of(Connect.class))
                .using(settings(args[0], args[1], args[2], args[3]))
                .using(OffsetCommitPolicy.always())
                .using((success, message, error) -> {
                    if (!success) {
                        System.err.println(message + " " + error);
                        System.exit(1);
                    }
                })
                .notifying(peer)
                .build();

        new Thread(engine).start();
        peer.stop.await();
        engine.close();
    }
}
