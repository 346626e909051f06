import com.sun.net.httpserver.HttpServer;
import java.io.StringWriter;
import java.net.InetSocketAddress;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import javax.tools.ToolProvider;

/**
 * A compile server: `GET /DIRECTORY` compiles all Java files of the directory, with a compiler that stays loaded. The answer
 * says which process it is, when it began, the number of this build, and how long the build took.
 */
public class Compiler {
    private static int builds = 0;

    public static void main(String[] words) throws Exception {
        var server = HttpServer.create(new InetSocketAddress("127.0.0.1", Integer.parseInt(words[0])), 0);
        var self = ProcessHandle.current();
        server.createContext("/", exchange -> {
            var since = System.nanoTime();
            var said = new StringWriter();
            boolean built;
            try (var paths = Files.list(Path.of(exchange.getRequestURI().getPath()))) {
                List<Path> sources = paths.filter(path -> path.toString().endsWith(".java")).toList();
                var compiler = ToolProvider.getSystemJavaCompiler();
                var files = compiler.getStandardFileManager(null, null, null);
                var units = files.getJavaFileObjectsFromPaths(sources);
                var options = List.of("-d", "/tmp/classes", "-proc:none");
                built = !sources.isEmpty() && compiler.getTask(said, files, null, options, null, units).call();
            }
            builds += 1;
            var took = (System.nanoTime() - since) / 1_000_000;
            var began = self.info().startInstant().orElseThrow().toEpochMilli();
            var text = self.pid() + " " + began + " " + builds + " " + took + "\n" + said;
            var bytes = text.getBytes();
            exchange.sendResponseHeaders(built ? 200 : 500, bytes.length);
            try (var body = exchange.getResponseBody()) {
                body.write(bytes);
            }
        });
        server.start();
    }
}
