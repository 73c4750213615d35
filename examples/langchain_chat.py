"""LangChain on slurmgate: pip install langchain-openai; export OPENAI_BASE_URL=.../v1 OPENAI_API_KEY=...

rag_chatbot.py has retrieval, citations and history.
"""

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

# stream_usage: with a base URL of one's own LangChain asks for the token counts only when told to
model = ChatOpenAI(model="slurmgate-guide", stream_usage=True)
prompt = ChatPromptTemplate([("system", "You are a helpful assistant."), ("human", "What is {thing}?")])
chain = prompt | model | StrOutputParser()

for piece in chain.stream({"thing": "a wall time"}):
    print(piece, end="", flush=True)
print()
for answer in chain.batch([{"thing": "a partition"}, {"thing": "a node"}]):
    print(answer)

# check_embedding_ctx_length=False sends texts. The default sends token ids, made with a vocabulary that it downloads
embeddings = OpenAIEmbeddings(model="slurmgate-embed", check_embedding_ctx_length=False)
print("an embedding has", len(embeddings.embed_query("a wall time")), "numbers")
