import java.nio.file.*;
import java.sql.*;
import java.util.*;

class Program {
    static void show(Object... fields) {
        var line = new StringJoiner("\t");
        for (var field : fields) line.add(String.join(" ", field.toString().trim().split("\\s+")));
        System.out.println(line);
    }

    public static void main(String[] arguments) throws Exception {
        var photos = Path.of(arguments[0]);
        var env = System.getenv();
        var url = "jdbc:postgresql://%s:%s/%s?user=%s".formatted(
                env.get("PGHOST"), env.get("PGPORT"), env.get("PGDATABASE"), env.get("PGUSER"));
        try (var db = DriverManager.getConnection(url)) {
            for (var name : List.of("cat", "cat-cropped", "rocket", "dahlia"))
                show("added", Photos.add(db, name, Files.readAllBytes(photos.resolve(name + ".jpg"))).orElse(""));
            show("bad", Photos.add(db, "notes", "not an image".getBytes()).orElseThrow());
            var svg = "<svg xmlns='http://www.w3.org/2000/svg'/>".getBytes();
            show("unsupported", Photos.add(db, "drawing", svg).orElseThrow());
            try {
                Photos.add(db, "forbidden", Files.readAllBytes(photos.resolve("cat.jpg")));
            } catch (SQLException error) {
                show("other", error.getSQLState());
            }
            for (var row : Photos.search(db, "a rocket on its way to space", 2)) show("found", row.title());
            var mirrored = Files.readAllBytes(photos.resolve("cat-mirrored.jpg"));
            for (var row : Photos.similar(db, mirrored, 1)) show("similar", row.title());
            for (var row : Photos.groups(db)) show("group", row.size(), row.title());
        }
    }
}
