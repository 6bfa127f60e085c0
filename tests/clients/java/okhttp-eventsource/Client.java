import com.launchdarkly.eventsource.ConnectStrategy;
import com.launchdarkly.eventsource.ErrorStrategy;
import com.launchdarkly.eventsource.EventSource;
import com.launchdarkly.eventsource.FaultEvent;
import com.launchdarkly.eventsource.MessageEvent;
import com.launchdarkly.eventsource.StreamHttpErrorException;
import java.net.URI;
import java.util.concurrent.TimeUnit;

public final class Client {
    public static void main(String[] arguments) {
        read(URI.create(arguments[0]));
        System.exit(0);
    }

    private static void read(URI url) {
        var connect = ConnectStrategy.http(url).readTimeout(1, TimeUnit.MINUTES); // 5 s otherwise
        var builder = new EventSource.Builder(connect).errorStrategy(ErrorStrategy.alwaysContinue());
        try (var source = builder.build()) { // unclosed at `end` it asks for ever
            for (var item : source.anyEvents()) {
                if (item instanceof MessageEvent event) {
                    Output.show(event.getLastEventId(), event.getEventName(), event.getData());
                    if (event.getEventName().equals("end")) {
                        return;
                    }
                } else if (item instanceof FaultEvent fault
                        && fault.getCause() instanceof StreamHttpErrorException refusal
                        && refusal.getCode() / 100 == 4) {
                    return;
                }
            }
        }
    }
}
