import java.net.URI;
import java.time.Duration;
import org.springframework.core.ParameterizedTypeReference;
import org.springframework.http.codec.ServerSentEvent;
import org.springframework.web.reactive.function.client.WebClient;
import org.springframework.web.reactive.function.client.WebClientResponseException;
import reactor.core.publisher.Flux;
import reactor.util.retry.Retry;

public final class Client {
    private static final Duration PAUSE = Duration.ofSeconds(1);
    private static final ParameterizedTypeReference<ServerSentEvent<String>> EVENT =
            new ParameterizedTypeReference<>() {};

    private final WebClient client = WebClient.builder()
            .codecs(codecs -> codecs.defaultCodecs().maxInMemorySize(16 << 20)) // of the largest event
            .build();
    private String cursor = "-1";

    public static void main(String[] arguments) {
        new Client()
                .events(URI.create(arguments[0]))
                .doOnNext(event -> Output.show(event.id(), event.event(), event.data()))
                .onErrorComplete() // a 4xx: there is nothing to be read
                .blockLast();
        System.exit(0);
    }

    private Flux<ServerSentEvent<String>> events(URI url) {
        return Flux.defer(() -> connection(url))
                .doOnNext(event -> cursor = event.id() != null ? event.id() : cursor) // `reset` has none
                .repeatWhen(ends -> ends.delayElements(PAUSE))
                .retryWhen(Retry.fixedDelay(Long.MAX_VALUE, PAUSE).filter(Client::passes))
                .takeUntil(event -> "end".equals(event.event()));
    }

    private Flux<ServerSentEvent<String>> connection(URI url) {
        return client.get().uri(url).header("Last-Event-ID", cursor).retrieve().bodyToFlux(EVENT);
    }

    private static boolean passes(Throwable error) {
        return !(error instanceof WebClientResponseException refusal && refusal.getStatusCode().is4xxClientError());
    }
}
