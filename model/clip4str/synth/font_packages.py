"""The Debian packages that the fonts of the synthetic word images come from, all under free licences."""

import re

# Chosen for variety: sans, serif, slab, condensed, bold display, script, handwriting, monospace, typewriter,
# receipt and dot-matrix faces. Every package ships its licence in /usr/share/doc/<package>/copyright.
PACKAGES: tuple[str, ...] = (
    "fonts-3270", "fonts-adf-accanthis", "fonts-adf-baskervald", "fonts-adf-berenis",
    "fonts-adf-gillius", "fonts-adf-ikarius", "fonts-adf-irianis", "fonts-adf-libris",
    "fonts-adf-mekanus", "fonts-adf-romande", "fonts-adf-solothurn", "fonts-adf-switzera",
    "fonts-adf-tribun", "fonts-adf-universalis", "fonts-adf-verana", "fonts-agave", "fonts-allerta",
    "fonts-anonymous-pro", "fonts-apropal", "fonts-arapey", "fonts-averia-gwf", "fonts-averia-sans-gwf",
    "fonts-averia-serif-gwf", "fonts-b612", "fonts-bajaderka", "fonts-bebas-neue", "fonts-beteckna",
    "fonts-breip", "fonts-bwht", "fonts-cabin", "fonts-cantarell", "fonts-century-catalogue",
    "fonts-cherrybomb", "fonts-clear-sans", "fonts-cmu", "fonts-comfortaa", "fonts-comic-neue",
    "fonts-compagnon", "fonts-courier-prime", "fonts-croscore", "fonts-crosextra-caladea",
    "fonts-crosextra-carlito", "fonts-dancingscript", "fonts-dejavu-core", "fonts-dejavu-extra",
    "fonts-dkg-handwriting", "fonts-dosis", "fonts-dotgothic16", "fonts-dustin", "fonts-ebgaramond",
    "fonts-ecolier-court", "fonts-engadget", "fonts-essays1743", "fonts-eurofurence",
    "fonts-fantasque-sans", "fonts-fanwood", "fonts-femkeklaver", "fonts-ferrite-core",
    "fonts-firacode", "fonts-freefont-ttf", "fonts-georgewilliams", "fonts-glasstty",
    "fonts-gnutypewriter", "fonts-go", "fonts-goudybookletter", "fonts-hack", "fonts-havana",
    "fonts-hermit", "fonts-humor-sans", "fonts-inconsolata", "fonts-inter", "fonts-isabella",
    "fonts-jetbrains-mono", "fonts-junction", "fonts-junicode", "fonts-jura", "fonts-karla",
    "fonts-karmilla", "fonts-kaushanscript", "fonts-kristi", "fonts-lato", "fonts-le-murmure",
    "fonts-league-mono", "fonts-league-spartan", "fonts-leckerli-one", "fonts-levien-typoscript",
    "fonts-liberation2", "fonts-lindenhill", "fonts-linuxlibertine", "fonts-lmodern", "fonts-lobster",
    "fonts-lobstertwo", "fonts-manrope", "fonts-millimetre", "fonts-monofur", "fonts-monoid",
    "fonts-mononoki", "fonts-national-park", "fonts-ocr-a", "fonts-ocr-b", "fonts-okolaks",
    "fonts-oldstandard", "fonts-open-sans", "fonts-opendin", "fonts-opendyslexic", "fonts-osifont",
    "fonts-oxygen", "fonts-paratype", "fonts-play", "fonts-prociono", "fonts-quattrocento",
    "fonts-quicksand", "fonts-radisnoir", "fonts-roadgeek", "fonts-roboto-slab",
    "fonts-roboto-unhinted", "fonts-rocknroll", "fonts-routed-gothic", "fonts-rufscript",
    "fonts-sixtyfour", "fonts-sjfonts", "fonts-solide-mirage", "fonts-sora", "fonts-staypuft",
    "fonts-stick", "fonts-stix", "fonts-summersby", "fonts-terminus-otb", "fonts-texgyre",
    "fonts-tiresias", "fonts-tomsontalks", "fonts-tuffy", "fonts-ubuntu-title", "fonts-urw-base35",
    "fonts-vollkorn", "fonts-yanone-kaffeesatz", "fonts-yrsa-rasa", "fonts-yusei-magic",
    "texlive-fonts-extra",
)  # fmt: skip

# Faces that are no text in Latin letters (symbols, dingbats, sign language, Slavonic), or whose letters are
# unusual beyond reading: matched against the file name.
EXCLUDED = re.compile(
    r"drm|^smf|Ubuntu-Title|unifur|[kK]eyb|Biolinum_K|QTStoryTime|D050000L|Dingbat|DingBit|Symbol|symbol|Math|math|Emoji|emoji|Awesome|icons|Icons|Countries|asapsym|dantelogo|"
    r"fraktur|Fraktur|hamnosys|phaistos|fontmfizz|svrsym|Church|missaali|Aboensis|beuron|OCRBX|Initial|yinit|aesupp|"
    r"punk|Arabian|Uncial|cmun(bi|bl|orm|ovt|ss)?x|semaphor|3dlet|twemoji|Ponomar|Fedorovsk|Pochaevsk|Triod|Menaion|"
    r"Vilnius|Mezenets|Indiction|Cathisma|Acathist|Voskresensky|Oglavie|Monomakh|Shafarik|Pomorsky|Linotte|frederika"
)

# Faces with capitals in place of lower case (or small ones) that their shapes alone do not give away.
CAPITALS = re.compile(r"BecauseWe|^ffm|Humor-Sans|CinzelDecorative|QTPiltdown|lmmonocaps|TomsonTalks")

# Families by name: what typewriters, line printers and tills print with, and what most print is set in.
TYPEWRITER = re.compile(
    r"Mono|Courier|Cousine|Cursor|Typewriter|GNUTypewriter|OCR|ocrb|DotGothic|Glass TTY|Inconsolata|"
    r"Anonymous|Hack|Hermit|Agave|3270|ALM Fixed|Source Code|Cascadia|Fira Code|LetterGoth|osifont|"
    r"Sixtyfour|Compagnon|Routed Gothic Half|IBM$"
)
PLAIN = re.compile(
    r"^(Arimo|Liberation Sans|Liberation Serif|Nimbus Sans|Nimbus Roman|"
    r"TeX Gyre (Heros|Termes|Adventor|Schola|Pagella|Bonum)|FreeSans|FreeSerif|QTHelvetd?$|Tinos|STIX|"
    r"XITS|Tempora|DejaVu|Open Sans|Noto S|Roboto(?! Mono)|Inter|Lato|Source Sans|Source Serif|Droid S|"
    r"Carlito|Caladea|Clear Sans|PT S|Fira Sans|IBM Plex S|Libre Franklin|Montserrat$|Raleway|Nunito|"
    r"Cabin|Karla|Roadgeek|Tuffy|Universalis|Switzera|Gillius|Latin Modern (Roman|Sans)$|"
    r"CMU (Serif|Sans)|Century|Libre (Baskerville|Caslon|Bodoni)|Merriweather|Crimson|EB Garamond|"
    r"Bitter|Arvo|Atkinson|Verana|Tiresias|URW|OSP-DIN|League Spartan|Bebas|Cooper Hewitt|Yanone|"
    r"QTSchoolCentury|QTBasker|QTEurotype|Baskervald|XCharter|Heuristica|League Gothic)"
)

# What people fill in by hand, and signs imitate.
HANDWRITTEN = re.compile(
    r"Breip|Handwriting|Domestic|Abogado|Rufscript|Humor Sans|femkeklaver|MagicMarker|Kristi|wasn't|Comic Neue|"
    r"Tomson|QTCasual|Dancing|Delphine|Wargames|Stick|Yusei|Kaushan|QTMerryScript|Summersby"
)

# Slanted faces by file name; every second face of a family is one, few printed words are.
SLANTED = re.compile(
    r"[iI]tal|ITAL|[oO]bl|[sS]lant|(It|BI|RI|I|-i|ti|bi|Ita|LI|MI|DI|Obli?|-Ob)(-[a-z]+)?\.[ot]tf$|Kursiv|[a-z]-(it|bi)"
)
